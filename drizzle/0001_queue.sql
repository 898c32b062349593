-- One running reply per session instead of one active one: messages may be queued behind it.
-- The previous program can run on this schema, as long as nobody sends `on_busy: queue`: it would accept a message past
-- those that are queued, and end them as interrupted, because no process has leased them. Let a deploy come through first.
DROP INDEX "chat_runs_one_active";--> statement-breakpoint
CREATE UNIQUE INDEX "chat_runs_one_running" ON "chat_runs" USING btree ("session_id") WHERE "chat_runs"."status" = 'running';--> statement-breakpoint
CREATE INDEX "chat_runs_session_queued" ON "chat_runs" USING btree ("session_id") WHERE "chat_runs"."status" = 'queued';