/**
 * The reader's choice of light or dark, before anything is painted. Not a module, so it shares nothing with the others; the
 * name of the setting is that of theme.ts. Where the browser refuses its storage, the system decides.
 */
try {
  const theme = localStorage.getItem('verbatim.theme')
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme
} catch {
  // A browser that keeps nothing has nothing to say.
}
