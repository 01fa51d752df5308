"""Parts made by many hosts at once, on engines that run there already."""
