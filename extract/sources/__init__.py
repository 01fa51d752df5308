"""What a place yields, as items. Nothing is decoded here."""
