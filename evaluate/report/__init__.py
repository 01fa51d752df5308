"""One HTML page about a store, which needs nothing beside itself (`cmcr report STORE`).

    write_report(store, store / "report.html", find_media)

inventory   what the store holds: datasets, failures, connections, results
words       one sentence about a connection, and what each metric means
tables      results beside their baselines, classes, failures, confusion
charts      SVG in the colours of the page
previews    items to see and to hear, found again by `find_media` (extract/lookup.py)
examples    queries and what they found, sounds and where they were located
page        all of it, section by section; template/ has HTML, style and script

Pictures, sounds and points are embedded. Where media, datasets or results are gone, the page says
so in their place.
"""
