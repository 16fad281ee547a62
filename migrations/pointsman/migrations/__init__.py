"""The database's schema and what LiteLLM needs to reach it: the migrations runner, the generated Prisma client, the query engine."""
