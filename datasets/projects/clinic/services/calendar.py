"""Free slots of a day."""


def slots(start: int, end: int, minutes: int = 15) -> list[int]:
    return list(range(start, end, minutes))


def free_slots(all_slots: list[int], taken: set[int]) -> list[int]:
    return [slot for slot in all_slots if slot not in taken]


def first_free(all_slots: list[int], taken: set[int]) -> int:
    free = free_slots(all_slots, taken)
    return free[0] if free else None
