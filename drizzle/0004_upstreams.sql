-- Plans and upstream calls of runs, budgets by day, summaries of sessions. The previous program can run on this schema: runs that
-- it accepts have no plan, and are made as their provider and model say; what they cost is counted by whoever ends them.
CREATE TABLE "budget_days" (
	"scope" text NOT NULL,
	"day" date NOT NULL,
	"spent_cost" numeric DEFAULT '0' NOT NULL,
	"reserved_cost" numeric DEFAULT '0' NOT NULL,
	"spent_tokens" bigint DEFAULT 0 NOT NULL,
	"reserved_tokens" bigint DEFAULT 0 NOT NULL,
	"within" boolean DEFAULT true NOT NULL,
	CONSTRAINT "budget_days_scope_day_pk" PRIMARY KEY("scope","day"),
	CONSTRAINT "budget_days_within" CHECK ("budget_days"."within")
);
--> statement-breakpoint
ALTER TABLE "chat_runs" ADD COLUMN "request" jsonb;--> statement-breakpoint
ALTER TABLE "chat_runs" ADD COLUMN "upstream_calls" jsonb DEFAULT '[]'::jsonb NOT NULL;--> statement-breakpoint
ALTER TABLE "chat_runs" ADD COLUMN "reservation" jsonb;--> statement-breakpoint
ALTER TABLE "chat_sessions" ADD COLUMN "summary" text;--> statement-breakpoint
ALTER TABLE "chat_sessions" ADD COLUMN "summary_message_id" uuid;--> statement-breakpoint
ALTER TABLE "chat_sessions" ADD COLUMN "summary_lease_until" timestamp with time zone;