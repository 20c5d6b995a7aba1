// The photograph to zoom into, under its heat map. Without this the photograph stands still.
"use strict";
addEventListener("DOMContentLoaded", () => {
  const get = (name) => document.getElementById(name);
  const box = get("viewer");
  const { photo, maps, width, height, mpp } = box.dataset;
  const still = get("still");
  box.style.aspectRatio = `${width} / ${height}`;
  // the library adds a style of its own unless it finds one, and inline styles are not let in here
  const style = document.createElementNS("urn:nothing", "style");
  style.setAttribute("data-openseadragon-mobile-css", "true");
  document.head.append(style);
  const viewer = OpenSeadragon({
    element: box,
    tileSources: { type: "image", url: photo, buildPyramid: false },
    showNavigationControl: false,
    drawer: "canvas",
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.4,
    maxZoomPixelRatio: 8,
    visibilityRatio: 0.6,
    gestureSettingsMouse: { clickToZoom: false, scrollToZoom: false, dblClickToZoom: true },
    keyboardNavEnabled: false,
  });
  still.remove();
  box.classList.add("alive");
  // the library makes elements of its own focusable; one place to be is enough
  viewer.canvas.removeAttribute("tabindex");
  get("controls").hidden = false;

  let layer = null;
  let asked = 0;
  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
  const opacity = () => (chosen("layer") === "contours" ? 1 : get("opacity").value / 100);

  const drop = () => { if (layer) viewer.world.removeItem(layer); layer = null; };
  const show = async () => {
    const mine = ++asked;
    const kind = chosen("layer");
    const method = chosen("method");
    drop();
    get("opacity").disabled = kind !== "heat";
    get("legend").hidden = true;
    if (kind === "none") return;
    get("means").textContent = "The heat map is being computed ...";
    get("believable").textContent = "";
    const reply = await fetch(maps + method, { headers: { accept: "application/json" } });
    const told = await reply.json();
    if (mine !== asked) return;
    if (!reply.ok) {
      get("means").textContent = `There is no heat map: ${told.what}. What to do: ${told.fix}.`;
      return;
    }
    const number = (value) => value.toPrecision(3);
    get("low").textContent = number(told.low);
    get("high").textContent = number(told.high);
    get("unit").textContent = told.unit;
    get("colours").src = `${maps}${method}/legend.png`;
    get("legend").hidden = false;
    get("means").textContent = told.means;
    viewer.addTiledImage({
      tileSource: { type: "image", url: `${maps}${method}/${kind}.png`, buildPyramid: false },
      opacity: opacity(),
      success: ({ item }) => { if (mine === asked) layer = item; else viewer.world.removeItem(item); box.dataset.layer = kind; },
    });
    get("believable").textContent = "Whether it can be believed is being measured ...";
    const measured = await fetch(`${maps}${method}/worth`, { headers: { accept: "application/json" } });
    const worth = await measured.json();
    if (mine === asked) get("believable").textContent = measured.ok ? worth.believable : `Whether it can be believed was not measured: ${worth.what}. What to do: ${worth.fix}.`;
  };
  for (const input of document.querySelectorAll("input[name=layer], input[name=method]")) input.addEventListener("change", show);
  get("opacity").addEventListener("input", () => { if (layer) layer.setOpacity(opacity()); });

  const view = viewer.viewport;
  const zoom = (factor) => { view.zoomBy(factor); view.applyConstraints(); };
  const move = (x, y) => { view.panBy(view.deltaPointsFromPixels(new OpenSeadragon.Point(x, y))); view.applyConstraints(); };
  get("in").addEventListener("click", () => zoom(1.5));
  get("out").addEventListener("click", () => zoom(1 / 1.5));
  get("all").addEventListener("click", () => view.goHome());
  const keys = {
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": () => view.goHome(),
    ArrowLeft: () => move(-60, 0), ArrowRight: () => move(60, 0), ArrowUp: () => move(0, -60), ArrowDown: () => move(0, 60),
  };
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });

  if (mpp) {
    // the longest of 1, 2 and 5 times a power of ten micrometres that takes at most 120 pixels
    const measure = () => {
      const pixels = viewer.world.getItemAt(0).viewportToImageZoom(view.getZoom(true));
      const most = (120 / pixels) * Number(mpp);
      const power = 10 ** Math.floor(Math.log10(most));
      const um = [5, 2, 1].find((n) => n * power <= most) * power;
      get("bar").style.width = `${(um / Number(mpp)) * pixels}px`;
      get("length").textContent = um >= 1000 ? `${um / 1000} mm` : `${um} µm`;
      get("scale").hidden = false;
    };
    viewer.addHandler("open", measure);
    viewer.addHandler("animation", measure);
    viewer.addHandler("resize", measure);
  }
  show();
});
