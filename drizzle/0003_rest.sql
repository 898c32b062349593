-- Owners, artifacts, feedback and search. The previous program can run on this schema; messages that it stores meanwhile
-- have no owner, and are not found by search until their session is claimed. On a large database the new indexes are built
-- once, before the first new process is ready: a few minutes for a million messages.
-- Both extensions come with Postgres, and the owner of a database may create them (they are "trusted").
CREATE EXTENSION IF NOT EXISTS btree_gin;--> statement-breakpoint
CREATE EXTENSION IF NOT EXISTS pg_trgm;--> statement-breakpoint
-- What search compares: `search_fold` is without capitals, and is cut so that no message is too long for an index;
-- `search_text` is what the index holds. Words of Chinese, Japanese and Korean have two characters and even one, and an
-- index of trigrams knows nothing that short; with each of their characters written twice, two of them are two trigrams.
-- A database made with the locale C knows capitals of ASCII only, so there another collation is asked, when there is one.
-- `search_text` takes 2 us for a message and 1 ms for a long Chinese one: its cost says so, or the planner would rather
-- read all messages of everybody than find a hundredth of them. One function calls no other: an index is built and
-- analyzed without a search path.
DO $do$
DECLARE
  folded text := 'lower(left(words, 200000)%s)';
BEGIN
  SELECT format(folded, ' collate pg_catalog.' || quote_ident(collname)) INTO folded
  FROM (SELECT) one LEFT JOIN pg_collation
    ON lower(U&'\00C9') <> U&'\00E9' AND collnamespace = 'pg_catalog'::regnamespace
      AND collname IN ('pg_c_utf8', 'C.utf8', 'und-x-icu')
      AND collencoding IN (-1, pg_char_to_encoding(getdatabaseencoding()))
  ORDER BY array_position(ARRAY['pg_c_utf8', 'C.utf8', 'und-x-icu'], collname::text)
  LIMIT 1;
  EXECUTE format($create$
    CREATE FUNCTION search_fold(words text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$ select %1$s $body$;
    CREATE FUNCTION search_text(words text) RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 100 AS $body$
    declare
      folded text := %1$s;
    begin
      if octet_length(folded) = length(folded) then
        return folded;
      end if;
      return regexp_replace(
        folded,
        '([\u2e80-\u2fdf\u3040-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff])',
        '\1\1', 'g'
      );
    end
    $body$
  $create$, folded);
END
$do$;--> statement-breakpoint
CREATE TABLE "artifacts" (
	"session_id" uuid NOT NULL,
	"name" text NOT NULL,
	"version" integer NOT NULL,
	"status" text DEFAULT 'ready' NOT NULL,
	"content_type" text NOT NULL,
	"body" text DEFAULT '' NOT NULL,
	"lease_until" timestamp with time zone,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "artifacts_session_id_name_version_pk" PRIMARY KEY("session_id","name","version"),
	CONSTRAINT "artifacts_status" CHECK ("artifacts"."status" in ('generating', 'ready', 'deleted'))
);
--> statement-breakpoint
CREATE TABLE "feedback" (
	"message_id" uuid PRIMARY KEY NOT NULL,
	"rating" smallint NOT NULL,
	"comment" text,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "feedback_rating" CHECK ("feedback"."rating" in (-1, 1))
);
--> statement-breakpoint
CREATE TABLE "users" (
	"id" uuid PRIMARY KEY NOT NULL,
	"issuer" text NOT NULL,
	"subject" text NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "users_subject_issuer" UNIQUE("subject","issuer")
);
--> statement-breakpoint
DROP INDEX "chat_sessions_owner_external_id";--> statement-breakpoint
ALTER TABLE "chat_messages" ADD COLUMN "owner" text;--> statement-breakpoint
UPDATE "chat_messages" SET "owner" = s."owner" FROM "chat_sessions" s WHERE s."id" = "chat_messages"."session_id";--> statement-breakpoint
ALTER TABLE "chat_runs" ADD COLUMN "kill_requested_at" timestamp with time zone;--> statement-breakpoint
ALTER TABLE "chat_runs" ADD COLUMN "parent_pending" boolean DEFAULT true NOT NULL;--> statement-breakpoint
ALTER TABLE "artifacts" ADD CONSTRAINT "artifacts_session_id_chat_sessions_id_fk" FOREIGN KEY ("session_id") REFERENCES "public"."chat_sessions"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "feedback" ADD CONSTRAINT "feedback_message_id_chat_messages_id_fk" FOREIGN KEY ("message_id") REFERENCES "public"."chat_messages"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "chat_messages_search" ON "chat_messages" USING gin ("owner",search_text("content") gin_trgm_ops) WITH (fastupdate=false);--> statement-breakpoint
CREATE INDEX "chat_sessions_search" ON "chat_sessions" USING gin ("owner",search_text("title") gin_trgm_ops) WITH (fastupdate=false) WHERE "chat_sessions"."deleted_at" is null;--> statement-breakpoint
CREATE INDEX "chat_sessions_owner" ON "chat_sessions" USING btree ("owner","id");--> statement-breakpoint
CREATE UNIQUE INDEX "chat_sessions_owner_external_id" ON "chat_sessions" USING btree ("owner","external_id") WHERE "chat_sessions"."deleted_at" is null;