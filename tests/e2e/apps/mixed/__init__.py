"""An application with a view for every recipe, each of which watches over what is its own."""
