"""The database layer's plumbing: schema migrations (`runner`), Prisma's query engine (`engine`) and their set-up (`install`)."""
