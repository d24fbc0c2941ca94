// A picture leads to itself in full size.
document$.subscribe(() => {
  for (const picture of document.querySelectorAll("article img")) {
    if (picture.closest("a")) continue
    const link = document.createElement("a")
    link.href = picture.src
    picture.replaceWith(link)
    link.append(picture)
  }
})
