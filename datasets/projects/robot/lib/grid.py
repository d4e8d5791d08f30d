"""A grid with walls."""


class Grid:
    def __init__(self, width: int, height: int, walls: set[tuple[int, int]]) -> None:
        self.width = width
        self.height = height
        self.walls = walls

    def is_free(self, x: int, y: int) -> bool:
        inside = 0 <= x < self.width and 0 <= y < self.height
        return inside and (x, y) not in self.walls
