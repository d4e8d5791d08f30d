"""A robot on a grid."""
