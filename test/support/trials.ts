/** How often a test of chance is repeated: a few times by default, more when FAULT_TRIALS says so. */
export function trialsOf(few: number, env: Readonly<Record<string, string | undefined>> = process.env): number {
  const asked = Number(env.FAULT_TRIALS ?? 0)
  return Number.isSafeInteger(asked) ? Math.max(few, asked) : few
}
