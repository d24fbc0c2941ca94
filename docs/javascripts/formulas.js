// Draws the formulas of a page: `$x$` and `$$ x $$`, of which pymdownx.arithmatex makes \(x\) and \[ x \] of class "arithmatex".
// Pages made of notebooks do not go through arithmatex: there the dollars are still in the text, and the same elements are made here.
const formula = /\$\$([^$]+)\$\$|\$([^$]+)\$/g

function mark(text) {
  const parts = document.createDocumentFragment()
  let end = 0
  for (const found of text.data.matchAll(formula)) {
    const element = document.createElement(found[1] ? "div" : "span")
    element.className = "arithmatex"
    element.textContent = found[1] ? `\\[${found[1]}\\]` : `\\(${found[2]}\\)`
    parts.append(text.data.slice(end, found.index), element)
    end = found.index + found[0].length
  }
  parts.append(text.data.slice(end))
  text.replaceWith(parts)
}

document$.subscribe(() => {
  for (const cell of document.querySelectorAll(".jp-MarkdownCell .jp-RenderedMarkdown")) {
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT)
    const texts = []
    while (walk.nextNode()) texts.push(walk.currentNode)
    for (const text of texts) if (text.data.includes("$") && !text.parentElement.closest("code, pre")) mark(text)
  }
  for (const element of document.querySelectorAll(".arithmatex")) {
    const source = element.textContent.trim()
    const options = { displayMode: source.startsWith("\\["), throwOnError: false, strict: "ignore" }
    katex.render(source.slice(2, -2), element, options)
  }
})
