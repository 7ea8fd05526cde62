"""Object stores by URI, as file systems: images, pages and catalogues may be in a bucket."""
