"""What the library is measured against. Peers live here only; the library imports none of them."""
