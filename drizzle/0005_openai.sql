-- Keys of the gateway, an index for repeats by clients that have no key of their own, and search without what clients have
-- brought. The previous program can run on this schema; it knows no keys, and answers 401 to whoever comes with one. On a large
-- database the index of words is built once more, before the first new process is ready: a few minutes for a million messages,
-- in which messages are read and none is written. So the old index goes last: nobody reads while it goes.
CREATE TABLE "api_keys" (
	"id" uuid PRIMARY KEY NOT NULL,
	"key_hash" text NOT NULL,
	"subject" text NOT NULL,
	"name" text DEFAULT '' NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"expires_at" timestamp with time zone,
	"revoked_at" timestamp with time zone,
	"last_used_at" timestamp with time zone,
	CONSTRAINT "api_keys_key_hash" UNIQUE("key_hash")
);
--> statement-breakpoint
CREATE INDEX "api_keys_subject" ON "api_keys" USING btree ("subject");--> statement-breakpoint
CREATE INDEX "chat_runs_owner_hash" ON "chat_runs" USING btree ("owner","request_hash","created_at" DESC NULLS FIRST);--> statement-breakpoint
CREATE INDEX "chat_messages_words" ON "chat_messages" USING gin ("owner",search_text("content") gin_trgm_ops) WITH (fastupdate=false) WHERE "chat_messages"."owner" is not null;--> statement-breakpoint
DROP INDEX "chat_messages_search";
