// Photographs by drop and paste, into the same form that works without this.
"use strict";
{
  const form = document.getElementById("send");
  const input = document.getElementById("images");
  const drop = document.getElementById("drop");
  const picked = document.getElementById("picked");
  const status = document.getElementById("status");
  document.getElementById("hint").hidden = false;

  const show = () => {
    picked.replaceChildren(...[...input.files].map((file) => {
      const item = document.createElement("li");
      item.textContent = `${file.name}, ${(file.size / 1024).toFixed(0)} kB`;
      return item;
    }));
  };
  const take = (files) => {
    const all = new DataTransfer();
    for (const file of files) if (file.type.startsWith("image/")) all.items.add(file);
    if (all.files.length === 0) { status.textContent = "There is no image among what came."; return; }
    status.textContent = "";
    input.files = all.files;
    show();
  };
  input.addEventListener("change", show);
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files); });
  addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
  form.addEventListener("submit", () => { status.textContent = "The model is looking ..."; });
  addEventListener("pageshow", () => { status.textContent = ""; show(); });
}
