"""The websocket host: stateless, as many of them as are needed."""
