// Draws the formulas of a page: `$x$` and `$$ x $$`, of which pymdownx.arithmatex makes \(x\) and \[ x \] of class "arithmatex".
document$.subscribe(() => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const source = element.textContent.trim()
    const options = { displayMode: source.startsWith("\\["), throwOnError: false, strict: "ignore" }
    katex.render(source.slice(2, -2), element, options)
  }
})
