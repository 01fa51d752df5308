"""The service over HTTP: routes, what stands before them, a server that ends well, and the page."""
