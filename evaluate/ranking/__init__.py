"""Pure functions of scores and matches. No store and no connection is opened here."""
