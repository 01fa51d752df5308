"""Which row of one space is which of another, told by what rows are like among themselves alone."""
