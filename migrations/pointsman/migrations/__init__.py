"""The database layer: schema migrations (`runner`), Prisma's query engine (`engine`) and their set-up step (`install`)."""
