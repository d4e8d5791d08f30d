"""The steps from one cell to another."""

from typing import Tuple

from lib.grid import Grid
from lib.battery import Battery


def steps(start: Tuple[int, int], goal: Tuple[int, int]) -> int:
    return abs(goal[0] - start[0]) + abs(goal[1] - start[1])


def can_reach(grid: Grid, battery: Battery, goal: Tuple[int, int]) -> bool:
    return grid.is_free(*goal) and battery.charge >= steps((0, 0), goal)
