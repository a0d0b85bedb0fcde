// Keys for the actions of the page. Without script every action is a link or a button as well.
for (const target of document.querySelectorAll("[data-key]")) {
  if (target.dataset.key) target.setAttribute("aria-keyshortcuts", target.dataset.key);
}
document.addEventListener("keydown", (event) => {
  // A key that is held down would press what the next page has in its place.
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const at = document.activeElement;
  if (event.key === "Escape" && at) { at.blur(); return; }
  if (at && (at.tagName === "INPUT" || at.tagName === "TEXTAREA")) return;
  for (const target of document.querySelectorAll("[data-key]")) {
    if (target.dataset.key && target.dataset.key === event.key.toLowerCase()) {
      event.preventDefault();
      if (target.matches("input, textarea")) target.focus(); else target.click();
      return;
    }
  }
});
