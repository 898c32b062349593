/** The Markdown lexer as the page gets it: a file beside its own, because a browser finds no packages. */
export { Lexer, type MarkedToken, type Token, type Tokens, type TokensList } from 'marked'
