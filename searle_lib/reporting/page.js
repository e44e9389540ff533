// What a report page does beside showing: it opens its contents where there is room, unfolds all code, lets the
// keyboard scroll what is wider than the page, and enlarges images. Without scripts everything stays readable.
"use strict";
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Contents: open at the side of a wide window, with the section that is being read marked.
  const outline = document.querySelector(".outline details");
  if (outline) {
    const wide = matchMedia("(min-width: 1240px)");
    const open = () => { outline.open = wide.matches; };
    wide.addEventListener("change", open);
    open();
    const links = all("a", outline);
    const headings = links.map(link => document.getElementById(decodeURIComponent(link.hash.slice(1))));
    const mark = () => {
      const current = headings.findLastIndex(heading => heading && heading.getBoundingClientRect().top < 120);
      links.forEach(link => link.removeAttribute("aria-current"));
      links[current]?.setAttribute("aria-current", "true");
    };
    addEventListener("scroll", mark, {passive: true});
    mark();
  }

  // Code
  const cells = all("details.code");
  const codeSwitch = document.getElementById("code-switch");
  codeSwitch.hidden = !cells.length;
  codeSwitch.onclick = () => {
    const show = cells.some(cell => !cell.open);
    cells.forEach(cell => { cell.open = show; });
    codeSwitch.textContent = show ? "Hide all code" : "Show all code";
  };

  // Frames that scroll sideways can have the focus, so that the arrow keys move them.
  const frames = all(".wide, .formula, .output_area, .query, pre");
  const focusable = () => frames.forEach(frame => {
    if (frame.scrollWidth > frame.clientWidth) frame.tabIndex = 0; else frame.removeAttribute("tabindex");
  });
  addEventListener("resize", focusable);
  addEventListener("toggle", focusable, true);
  focusable();

  // Images: a click or Enter enlarges one. A group is one stop of the tab key; arrows move within it.
  const dialog = document.body.appendChild(document.createElement("dialog"));
  dialog.className = "image";
  dialog.setAttribute("aria-label", "Image");
  dialog.innerHTML = '<div></div><p></p><button type="button">←</button>' +
    '<button type="button" autofocus>Close</button><button type="button">→</button>';
  const [frame, caption, back, close, forth] = dialog.children;
  back.setAttribute("aria-label", "Previous image");
  forth.setAttribute("aria-label", "Next image");
  let group = [], current = 0;
  const show = number => {
    current = (number + group.length) % group.length;
    frame.replaceChildren(group[current].cloneNode(true));
    const image = frame.firstChild;
    ["role", "tabindex", "class"].forEach(name => image.removeAttribute(name));
    image.setAttribute("role", "img");
    caption.textContent = image.querySelector("title").textContent;
  };
  const enlarge = (images, number) => { group = images; show(number); dialog.showModal(); };
  back.onclick = () => show(current - 1);
  forth.onclick = () => show(current + 1);
  close.onclick = () => dialog.close();
  dialog.onclick = event => { if (event.target === dialog) dialog.close(); };
  dialog.onclose = () => group[current].focus();
  dialog.onkeydown = event => {
    if (event.key === "ArrowLeft") show(current - 1);
    if (event.key === "ArrowRight") show(current + 1);
  };
  for (const block of all(".sheet .query, .strip")) {
    const images = all("figure svg", block);
    images.forEach((image, i) => {
      image.setAttribute("role", "button");
      image.classList.add("enlargeable");
      image.tabIndex = i ? -1 : 0;
      image.onclick = () => enlarge(images, i);
      image.onfocus = () => images.forEach(other => { other.tabIndex = other === image ? 0 : -1; });
      image.onkeydown = event => {
        const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
        if (event.key === "Enter" || event.key === " ") enlarge(images, i);
        else if (step) images[(i + step + images.length) % images.length].focus();
        else return;
        event.preventDefault();
      };
    });
  }
}
