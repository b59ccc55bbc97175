"""From the candidates of a request to what is shown of them: a subset in a new order."""
