CREATE TABLE "chat_messages" (
	"id" uuid PRIMARY KEY NOT NULL,
	"session_id" uuid NOT NULL,
	"seq" integer NOT NULL,
	"parent_id" uuid,
	"run_id" uuid,
	"role" text NOT NULL,
	"content" text DEFAULT '' NOT NULL,
	"parts" jsonb DEFAULT '[]'::jsonb NOT NULL,
	"status" text NOT NULL,
	"agent_id" text,
	"model" text,
	"client_message_id" text,
	"retrieved_docs" jsonb,
	"reranker_used" boolean,
	"input_tokens" integer,
	"output_tokens" integer,
	"total_tokens" integer,
	"latency_ms" integer,
	"ttft_ms" integer,
	"finish_reason" text,
	"error" jsonb,
	"metadata" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"completed_at" timestamp with time zone,
	CONSTRAINT "chat_messages_session_seq" UNIQUE("session_id","seq"),
	CONSTRAINT "chat_messages_role" CHECK ("chat_messages"."role" in ('user', 'assistant', 'system', 'tool')),
	CONSTRAINT "chat_messages_status" CHECK ("chat_messages"."status" in ('streaming', 'completed', 'stopped', 'failed', 'interrupted'))
);
--> statement-breakpoint
CREATE TABLE "chat_runs" (
	"id" uuid PRIMARY KEY NOT NULL,
	"session_id" uuid NOT NULL,
	"user_message_id" uuid NOT NULL,
	"message_id" uuid NOT NULL,
	"kind" text DEFAULT 'chat' NOT NULL,
	"status" text NOT NULL,
	"mode" text NOT NULL,
	"provider" text NOT NULL,
	"model" text NOT NULL,
	"phase" text,
	"round_number" integer,
	"cost" numeric,
	"usage" jsonb,
	"usage_source" text,
	"finish_reason" text,
	"error" jsonb,
	"generation" integer DEFAULT 1 NOT NULL,
	"instance_id" uuid,
	"attempts" integer DEFAULT 1 NOT NULL,
	"last_seq" integer DEFAULT 0 NOT NULL,
	"stop_requested_at" timestamp with time zone,
	"on_disconnect" text DEFAULT 'continue' NOT NULL,
	"owner" text NOT NULL,
	"idempotency_key" text,
	"request_hash" text NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"started_at" timestamp with time zone,
	"first_token_at" timestamp with time zone,
	"ended_at" timestamp with time zone,
	CONSTRAINT "chat_runs_owner_key" UNIQUE("owner","idempotency_key"),
	CONSTRAINT "chat_runs_status" CHECK ("chat_runs"."status" in ('queued', 'running', 'completed', 'stopped', 'failed', 'interrupted')),
	CONSTRAINT "chat_runs_mode" CHECK ("chat_runs"."mode" in ('fast', 'balanced', 'quality', 'adaptive')),
	CONSTRAINT "chat_runs_on_disconnect" CHECK ("chat_runs"."on_disconnect" in ('continue', 'stop'))
);
--> statement-breakpoint
CREATE TABLE "chat_sessions" (
	"id" uuid PRIMARY KEY NOT NULL,
	"external_id" text,
	"user_id" text,
	"visitor_hash" text,
	"is_anonymous" boolean GENERATED ALWAYS AS (user_id is null) STORED NOT NULL,
	"owner" text GENERATED ALWAYS AS (case when user_id is not null then 'user:' || user_id else 'visitor:' || visitor_hash end) STORED,
	"kind" text DEFAULT 'chat' NOT NULL,
	"status" text DEFAULT 'created' NOT NULL,
	"state" jsonb,
	"input" text,
	"context" jsonb,
	"title" text,
	"title_source" text,
	"mode" text DEFAULT 'balanced' NOT NULL,
	"model" text,
	"phase" text,
	"round_number" integer,
	"message_count" integer DEFAULT 0 NOT NULL,
	"total_tokens" bigint DEFAULT 0 NOT NULL,
	"total_cost" numeric DEFAULT '0' NOT NULL,
	"active_run_id" uuid,
	"tags" text[] DEFAULT '{}' NOT NULL,
	"metadata" jsonb DEFAULT '{}'::jsonb NOT NULL,
	"version" integer DEFAULT 1 NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp with time zone DEFAULT now() NOT NULL,
	"last_activity_at" timestamp with time zone DEFAULT now() NOT NULL,
	"ended_at" timestamp with time zone,
	"archived" boolean DEFAULT false NOT NULL,
	"archive_location" text,
	"archive_sha256" text,
	"deleted_at" timestamp with time zone,
	CONSTRAINT "chat_sessions_one_owner" CHECK (num_nonnulls("chat_sessions"."user_id", "chat_sessions"."visitor_hash") = 1),
	CONSTRAINT "chat_sessions_mode" CHECK ("chat_sessions"."mode" in ('fast', 'balanced', 'quality', 'adaptive')),
	CONSTRAINT "chat_sessions_status" CHECK ("chat_sessions"."status" in ('created', 'running', 'completed', 'failed', 'killed', 'deleted')),
	CONSTRAINT "chat_sessions_title_source" CHECK ("chat_sessions"."title_source" in ('message', 'client', 'model'))
);
--> statement-breakpoint
CREATE TABLE "instances" (
	"id" uuid PRIMARY KEY NOT NULL,
	"lease_until" timestamp with time zone NOT NULL,
	"draining" boolean DEFAULT false NOT NULL,
	"started_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "run_checkpoints" (
	"run_id" uuid NOT NULL,
	"generation" integer NOT NULL,
	"seq" integer NOT NULL,
	"part" integer NOT NULL,
	"kind" text NOT NULL,
	"part_offset" integer NOT NULL,
	"text" text NOT NULL,
	"detail" jsonb,
	CONSTRAINT "run_checkpoints_run_id_generation_seq_part_pk" PRIMARY KEY("run_id","generation","seq","part")
);
--> statement-breakpoint
ALTER TABLE "chat_messages" ADD CONSTRAINT "chat_messages_session_id_chat_sessions_id_fk" FOREIGN KEY ("session_id") REFERENCES "public"."chat_sessions"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "chat_runs" ADD CONSTRAINT "chat_runs_session_id_chat_sessions_id_fk" FOREIGN KEY ("session_id") REFERENCES "public"."chat_sessions"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "run_checkpoints" ADD CONSTRAINT "run_checkpoints_run_id_chat_runs_id_fk" FOREIGN KEY ("run_id") REFERENCES "public"."chat_runs"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "chat_messages_parent" ON "chat_messages" USING btree ("parent_id");--> statement-breakpoint
CREATE INDEX "chat_messages_run" ON "chat_messages" USING btree ("run_id");--> statement-breakpoint
CREATE INDEX "chat_messages_session_created" ON "chat_messages" USING btree ("session_id","created_at");--> statement-breakpoint
CREATE INDEX "chat_messages_retrieved_docs" ON "chat_messages" USING gin ("retrieved_docs" jsonb_path_ops);--> statement-breakpoint
CREATE UNIQUE INDEX "chat_runs_one_active" ON "chat_runs" USING btree ("session_id") WHERE "chat_runs"."status" in ('queued', 'running');--> statement-breakpoint
CREATE INDEX "chat_runs_session" ON "chat_runs" USING btree ("session_id","created_at");--> statement-breakpoint
CREATE INDEX "chat_runs_owner_active" ON "chat_runs" USING btree ("owner") WHERE "chat_runs"."status" in ('queued', 'running');--> statement-breakpoint
CREATE INDEX "chat_runs_instance_active" ON "chat_runs" USING btree ("instance_id") WHERE "chat_runs"."status" in ('queued', 'running');--> statement-breakpoint
CREATE UNIQUE INDEX "chat_sessions_owner_external_id" ON "chat_sessions" USING btree ("owner","external_id");--> statement-breakpoint
CREATE INDEX "chat_sessions_owner_activity" ON "chat_sessions" USING btree ("owner","last_activity_at" DESC NULLS FIRST,"id" DESC NULLS FIRST) WHERE "chat_sessions"."deleted_at" is null;--> statement-breakpoint
CREATE INDEX "chat_sessions_owner_status_activity" ON "chat_sessions" USING btree ("owner","status","last_activity_at" DESC NULLS FIRST,"id" DESC NULLS FIRST) WHERE "chat_sessions"."deleted_at" is null;--> statement-breakpoint
CREATE INDEX "chat_sessions_archive" ON "chat_sessions" USING btree ("archived","ended_at") WHERE "chat_sessions"."ended_at" is not null;--> statement-breakpoint
CREATE INDEX "chat_sessions_metadata" ON "chat_sessions" USING gin ("metadata" jsonb_path_ops);--> statement-breakpoint
CREATE INDEX "chat_sessions_tags" ON "chat_sessions" USING gin ("tags");