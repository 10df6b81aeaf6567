"""The live router: an OpenAI-compatible proxy that sends each request where a routing policy wants it."""
