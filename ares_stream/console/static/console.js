// Keys for the actions of the page. Without script every action is a link or a button as well.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
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
