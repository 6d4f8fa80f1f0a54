"""Being here puts tests/ on the path, so that test files can import `helpers`."""
