"""Who does the work: read, decode, encode, write. What an item is and where it
lies is known elsewhere.
"""
