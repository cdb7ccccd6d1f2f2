"""Choose a strategy for every op and a placement for every value, all at once and exactly."""
