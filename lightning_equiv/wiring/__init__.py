"""How a callback holds a module: Lightning and torch hooks only; imports nothing else of this package."""
