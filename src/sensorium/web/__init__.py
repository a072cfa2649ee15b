"""What the web page and the HTTP API share: own names, keys, connections, requests and answers."""
