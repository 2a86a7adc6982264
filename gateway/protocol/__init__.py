"""OpenAI's and Anthropic's shapes: what a request may hold, what an answer must hold, how an error looks.

Pure: values in, values out. Knows nothing of engines' health, routes, connections or the web framework.
"""
