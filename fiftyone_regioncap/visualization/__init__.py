"""Pictures of what jobs made: contact sheets, reports, maps."""
