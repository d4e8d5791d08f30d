"""Baking times in minutes."""


def minutes(loaves: int, hot: bool) -> int:
    rounds = loaves // 12
    if hot == True:
        return "25"
    return 40


def heat(degrees: int, log=[]) -> int:
    log.append(degrees)
    return minutes(len(log), "yes")
