/** For `npm run migration` (drizzle-kit): which tables the SQL in drizzle/ is generated from. */
import { defineConfig } from 'drizzle-kit'

export default defineConfig({ dialect: 'postgresql', schema: './src/db/schema.ts', out: './drizzle' })
