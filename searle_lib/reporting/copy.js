// Copies the text of a table to the clipboard. A page may have this script once per table; only the first one listens.
(() => {
  for (const row of document.querySelectorAll(".copies[hidden]")) row.hidden = false;
  if (window.copiesTables) return;
  window.copiesTables = true;

  const copyBySelection = (text) => { // where a page may not use the clipboard, as one that is opened from disk
    const area = document.createElement("textarea");
    area.value = text;
    area.style.cssText = "position: fixed; top: 0; opacity: 0";
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  };

  document.addEventListener("click", async ({target}) => {
    const button = target.closest(".copies button");
    if (!button) return;
    const {text} = button.dataset;
    let isCopied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      isCopied = copyBySelection(text);
      button.focus();
    }
    const message = isCopied ? `${button.textContent} copied` : "This browser does not let the page copy.";
    button.parentElement.querySelector("[role=status]").textContent = message;
  });
})();
