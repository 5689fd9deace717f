"""Views of dictionaries: browse latents, follow links, read a prompt, match two dictionaries."""
