"""What people read: costs, pages and contact sheets, derived from the ledger and the tables."""
