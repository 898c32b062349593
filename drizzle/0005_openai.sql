-- Keys of the gateway, and an index for repeats by clients that have no key of their own. The previous program can run on this
-- schema; it knows no keys, and answers 401 to whoever comes with one.
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
CREATE INDEX "chat_runs_owner_hash" ON "chat_runs" USING btree ("owner","request_hash","created_at" DESC NULLS FIRST);