/** kill -9 on the embedded database: kill.ts says what must hold. */
import { testKills } from './kill.ts'

testKills('pglite')
