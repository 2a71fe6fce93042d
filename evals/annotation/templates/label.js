"use strict";
(() => {
  const query = JSON.parse(document.getElementById("query").textContent);
  const { items, classes } = query;
  const OTHER = -1; // the label of an image of no target class; null: no label yet
  const UNDO_DEPTH = 1000;
  const COMPLETE = "Every image has a label. Save the csv (S).";
  const element = (id) => document.getElementById(id);
  const images = element("images");
  const cards = [];
  const restButtons = []; // of each group

  let labels = items.map(() => null);
  let history = []; // steps, the last one last: of each image that the step labeled [image, label before]
  let trail = []; // images that were current before, the last one last
  let current = items.length ? 0 : null; // null: none is, and no key labels anything
  let anchor = null; // where a selection of several images began that ends at the current one
  let filter = "all"; // or "unlabeled", "differs", a label
  let example = null; // what the full-size view shows if it is not the current image
  let storageWorks = true;
  let unsaved = false; // labels that no csv holds yet

  // A label's name, and its cell in the csv (made by the program that reads it back).
  const nameOf = (label) => (label === OTHER ? query.other.name : classes[label].name);
  const cellOf = (label) => (label === null ? "" : label === OTHER ? query.other.cell : classes[label].cell);
  const validLabel = (label) => label === null || (Number.isInteger(label) && label >= OTHER && label < classes.length);
  const validImage = (image) => Number.isInteger(image) && image >= 0 && image < items.length;
  const isComplete = () => !labels.includes(null);

  // State that outlives the tab.

  function keep() {
    try {
      localStorage.setItem(query.key, JSON.stringify({ labels, history, current, unsaved }));
      storageWorks = true;
    } catch (error) {
      storageWorks = false;
    }
    element("storage").hidden = storageWorks;
  }

  function restore(text) {
    let kept = null;
    try {
      kept = JSON.parse(text);
    } catch (error) {
      return;
    }
    if (!kept || !Array.isArray(kept.labels) || kept.labels.length !== items.length) return;
    labels = kept.labels.map((label) => (validLabel(label) ? label : null));
    const valid = (change) => Array.isArray(change) && validImage(change[0]) && validLabel(change[1]);
    const isStep = (step) => Array.isArray(step) && step.length > 0 && step.every(valid);
    history = Array.isArray(kept.history) ? kept.history.filter(isStep) : [];
    if (validImage(kept.current) || (kept.current === null && isComplete())) current = kept.current;
    unsaved = Boolean(kept.unsaved);
  }

  // What is shown and selected.

  function matches(image, wanted = filter) {
    const label = labels[image];
    if (wanted === "all") return true;
    if (wanted === "unlabeled") return label === null;
    const { suggestion } = items[image];
    if (wanted === "differs") return label !== null && suggestion !== null && label !== suggestion;
    return label === Number(wanted);
  }

  const visible = (image) => matches(image) || image === current;
  const all = (condition) => [...items.keys()].filter(condition);

  function isSelected(image) {
    if (current === null || !visible(image)) return false;
    const other = anchor === null ? current : anchor;
    return image >= Math.min(current, other) && image <= Math.max(current, other);
  }

  // Labeling.

  // Labels images in one step, which undo takes back as one, and goes on to the next image. After the last one that is
  // the first without a label; once all have one, none is current, lest one key too many label an image anew.
  function setLabels(chosen, labelOf, what, next = neighbour(1, chosen[chosen.length - 1])) {
    const wasComplete = isComplete();
    const changed = chosen.filter((image) => labels[image] !== labelOf(image));
    if (changed.length) {
      history.push(changed.map((image) => [image, labels[image]]));
      if (history.length > UNDO_DEPTH) history.shift();
      for (const image of changed) labels[image] = labelOf(image);
      unsaved = true;
    }
    const messages = [];
    if (chosen.length > 1) messages.push(`${chosen.length} images: ${what}. Undo (U) takes that back.`);
    if (next === null) {
      next = all((image) => labels[image] === null && matches(image))[0] ?? null;
      if (next !== null) messages.push("That was the last image; this is the first without a label.");
      else if (!isComplete()) messages.push("That was the last image shown here.");
    }
    if (isComplete()) messages.push(COMPLETE);
    say(messages.join(" "));
    choose(isComplete() && !wasComplete ? null : next);
    const which = chosen.length > 1 ? `${chosen.length} images` : items[chosen[0]].path;
    announce(`${which}: ${what}. ${element("count").textContent}`);
  }

  function labelSelected(label) {
    const chosen = all(isSelected);
    if (!chosen.length) return;
    if (label === null) setLabels(chosen, () => null, "label removed", current);
    else setLabels(chosen, () => label, nameOf(label));
  }

  function accept() {
    const chosen = all(isSelected);
    if (!chosen.length) return;
    const suggestions = chosen.map((image) => items[image].suggestion);
    if (suggestions.includes(null)) say("There is no suggestion; press the key of a class.");
    else setLabels(chosen, (image) => items[image].suggestion, [...new Set(suggestions.map(nameOf))].join(", "));
  }

  const restOf = (group) => all((image) => items[image].group === group && labels[image] === null && visible(image));

  function undo() {
    const step = history.pop();
    if (!step) return;
    for (const [image, label] of step) labels[image] = label;
    unsaved = true;
    say("");
    choose(step[0][0]);
    announce(`Undone: ${items[step[0][0]].path}. ${element("count").textContent}`);
  }

  // Moving.

  // The next image that the filter lets through (by 1), or the one before (by -1).
  function neighbour(by, from) {
    for (let image = from + by; validImage(image); image += by) if (matches(image)) return image;
    return null;
  }

  function step(by, extend, from = current) {
    const image = neighbour(by, from === null ? (by > 0 ? -1 : items.length) : from);
    if (image !== null) choose(image, { extend });
  }

  function stepRow(down, extend) {
    if (current === null) {
      step(down ? 1 : -1);
      return;
    }
    const from = cards[current].getBoundingClientRect();
    let best = null;
    let bestCost = Infinity;
    cards.forEach((card, image) => {
      if (card.hidden) return;
      const to = card.getBoundingClientRect();
      const distance = down ? to.top - from.top : from.top - to.top;
      if (distance < 1) return;
      const cost = distance * 10000 + Math.abs(to.left - from.left);
      if (cost < bestCost) [best, bestCost] = [image, cost];
    });
    if (best !== null) choose(best, { extend });
  }

  function back() {
    if (!trail.length) {
      step(-1);
      return;
    }
    const image = trail.pop();
    const before = trail.length;
    choose(image);
    trail.length = before; // without the image that this came from
  }

  // Makes an image the current one, or none; with `extend`, the images from there to here are selected.
  function choose(image, { extend = false, focus = true } = {}) {
    if (current !== null && current !== image) trail.push(current);
    if (!extend) anchor = null;
    else if (anchor === null) anchor = current;
    current = image;
    show();
    if (focus) focusCurrent();
    if (image !== null) cards[image].scrollIntoView({ block: "nearest" });
    keep();
  }

  function focusCurrent() {
    if (current === null) document.activeElement.blur();
    else cards[current].focus({ preventScroll: true });
  }

  function setFilter(wanted) {
    filter = wanted;
    const stays = current === null ? isComplete() : matches(current);
    choose(stays ? current : (neighbour(1, current ?? -1) ?? neighbour(1, -1)));
  }

  const folded = (text) => text.trim().normalize("NFC").toLowerCase();

  function find(from) {
    const wanted = folded(element("find").value);
    if (!wanted) return;
    const found = all((image) => folded(items[image].path).includes(wanted));
    const few = ["No name matches.", "One name matches."];
    say(few[found.length] ?? `${found.length} names match; Enter goes to the next.`);
    if (!found.length) return;
    const image = found.find((each) => each >= from) ?? found[0];
    if (!matches(image)) filter = "all";
    choose(image, { focus: false });
  }

  // Drawing.

  function create(tag, className, text) {
    const created = document.createElement(tag);
    if (className) created.className = className;
    if (text !== undefined) created.textContent = text;
    return created;
  }

  function createButton(className, onClick) {
    const button = create("button", className);
    button.type = "button";
    button.addEventListener("click", onClick);
    return button;
  }

  function showImage(target, picture) {
    target.src = picture.image;
    target.classList.toggle("pixels", picture.small);
  }

  const scoresOf = (item) =>
    query.scores.map((name, index) => item.scores[index] && `${name} ${item.scores[index]}`).filter(Boolean);

  function build() {
    query.groups.forEach((group, number) => {
      const box = create("div", "group");
      box.setAttribute("role", "group");
      const title = create("h2", "", group.title);
      title.id = `group-${number}`;
      title.dir = "auto";
      title.append(create("span", "number", ` (${group.count})`));
      box.setAttribute("aria-labelledby", title.id);
      restButtons.push(createButton("rest", () => setLabels(restOf(number), () => OTHER, query.other.name)));
      const head = create("div", "head");
      head.append(title, restButtons[number]);
      const grid = create("div", "grid");
      for (let count = 0; count < group.count; count++) {
        items[cards.length].group = number;
        grid.append(buildCard(cards.length));
      }
      box.append(head, grid);
      images.append(box);
    });
    classes.forEach((entry, number) => element("choices").append(choice(entry.name, entry.key, number)));
    element("choices").append(choice(`${query.other.name}: none of these`, query.other.key, OTHER));
    for (const wanted of ["all", "unlabeled", "differs", ...classes.keys(), OTHER]) {
      element("filter").append(create("option"));
      element("filter").lastChild.value = wanted;
    }
    for (const entry of classes) element("examples").append(...buildExamples(entry));
    element("examples").hidden = !classes.some((entry) => entry.examples.length);
    element("examples").open = window.matchMedia("(min-width: 52rem)").matches;
    element("worth").textContent = query.worth;
    element("worth").hidden = !query.worth;
  }

  function buildCard(image) {
    const item = items[image];
    const card = create("div", "card");
    card.setAttribute("role", "option");
    card.id = `image-${image}`;
    const thumbnail = create("img");
    thumbnail.alt = "";
    thumbnail.decoding = "async";
    thumbnail.loading = "lazy";
    showImage(thumbnail, item);
    card.append(thumbnail, create("div", "mark"), create("div", "small", scoresOf(item)[0] || ""));
    card.addEventListener("click", (event) => choose(image, { extend: event.shiftKey }));
    cards[image] = card;
    return card;
  }

  function choice(name, key, label) {
    const button = createButton("", () => labelSelected(label));
    button.dataset.label = String(label);
    if (key) {
      button.append(create("kbd", "", key), " ");
      button.setAttribute("aria-keyshortcuts", key);
    }
    button.append(create("bdi", "", name), create("span", "number"));
    button.title = name;
    return button;
  }

  function buildExamples(entry) {
    const row = create("div", "row");
    for (const picture of entry.examples) {
      const button = createButton("", () => showFull(picture));
      const image = create("img");
      image.alt = picture.path;
      showImage(image, picture);
      button.append(image);
      row.append(button);
    }
    return [create("p", "path", entry.name), row];
  }

  function show() {
    cards.forEach((card, image) => showCard(card, image));
    [...images.children].forEach((box, group) => {
      box.hidden = !box.querySelector(".card:not([hidden])");
      const count = restOf(group).length;
      restButtons[group].textContent = `Rest of this group: ${query.other.name} (${count})`;
      restButtons[group].hidden = !count;
    });
    element("empty").hidden = cards.some((card) => !card.hidden);
    showCounts();
    showCurrent();
  }

  function showCard(card, image) {
    const label = labels[image];
    const item = items[image];
    card.hidden = !visible(image);
    card.classList.toggle("done", label !== null && label !== OTHER);
    card.classList.toggle("other", label === OTHER);
    card.classList.toggle("current", image === current);
    card.setAttribute("aria-selected", String(isSelected(image)));
    card.tabIndex = image === (current === null ? 0 : current) ? 0 : -1;
    card.querySelector(".mark").textContent = label === null ? "" : `✓ ${nameOf(label)}`;
    const suggested = item.suggestion === null ? "" : `, suggested ${nameOf(item.suggestion)}`;
    card.setAttribute("aria-label", `${item.path}${suggested}, ${label === null ? "no label" : `label ${nameOf(label)}`}`);
  }

  function showCurrent() {
    const chosen = current !== null;
    const item = chosen ? items[current] : null;
    const count = all(isSelected).length;
    element("enlarge").hidden = !chosen;
    for (const button of element("choices").children) {
      button.disabled = !chosen;
      button.setAttribute("aria-pressed", String(chosen && labels[current] === Number(button.dataset.label)));
    }
    element("path").textContent = chosen ? item.path : "";
    element("scores").querySelector("p").textContent = chosen ? scoresOf(item).join(", ") : "";
    element("scores").hidden = !chosen || !scoresOf(item).length;
    element("label").textContent = count > 1 ? `${count} images are selected: a key labels them all` : describe(current);
    if (chosen) showImage(element("preview"), item);
    if (element("full").open && !example) {
      if (chosen) showFull(null);
      else element("full").close();
    }
  }

  function describe(image) {
    if (image === null) return "";
    const { suggestion } = items[image];
    const suggested = suggestion === null ? "no suggestion" : `suggested: ${nameOf(suggestion)}`;
    return labels[image] === null ? suggested : `${nameOf(labels[image])} (${suggested})`;
  }

  function showCounts() {
    const counts = new Map();
    for (const label of labels) counts.set(label, (counts.get(label) || 0) + 1);
    const done = items.length - (counts.get(null) || 0);
    element("count").textContent = `${done} of ${items.length} labeled`;
    element("bar").max = Math.max(items.length, 1);
    element("bar").value = done;
    element("undo").disabled = !history.length;
    for (const button of element("choices").children) {
      button.querySelector(".number").textContent = ` ${counts.get(Number(button.dataset.label)) || 0}`;
    }
    const titles = { all: "All", unlabeled: "Unlabeled", differs: "Not as suggested" };
    for (const option of element("filter").options) {
      const title = titles[option.value] || `Labeled ${nameOf(Number(option.value))}`;
      option.textContent = `${title} (${all((image) => matches(image, option.value)).length})`;
    }
    element("filter").value = filter;
  }

  // The current image, or a labeled example, as large as the window.
  function showFull(picture) {
    example = picture;
    const shown = picture || items[current];
    showImage(element("full-image"), shown);
    element("full-image").alt = shown.path;
    element("full-path").textContent = shown.path;
    element("full-label").textContent = picture ? "" : element("label").textContent;
    element("file").href = shown.link;
    if (element("full").open) return;
    element("full").showModal();
    element("full").focus(); // not its link, which Enter would open
  }

  function toggleFull() {
    if (element("full").open) element("full").close();
    else if (current !== null) showFull(null);
  }

  function announce(text) {
    element("announcement").textContent = text;
  }

  function say(text) {
    element("message").textContent = text;
    element("message").hidden = !text;
  }

  // Saving.

  function csv() {
    const lines = items.map((item, image) => item.row + cellOf(labels[image]));
    return "\ufeff" + [query.heading, ...lines].map((line) => `${line}\r\n`).join("");
  }

  function save() {
    const address = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    const link = create("a");
    link.href = address;
    link.download = query.file;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    unsaved = false;
    keep();
    const missing = labels.filter((label) => label === null).length;
    say(
      `Saved as ${query.file}. Next: run the command again with --labels and the path of that file` +
        (missing ? `; ${missing} of ${items.length} images have no label, so add --partial or label them first.` : "."),
    );
  }

  // Keys.

  const labelOfKey = new Map([[query.other.key, OTHER]]);
  classes.forEach((entry, number) => entry.key && labelOfKey.set(entry.key, number));
  const actions = {
    ArrowLeft: (extend) => step(-1, extend),
    ArrowRight: (extend) => step(1, extend),
    ArrowUp: (extend) => stepRow(false, extend),
    ArrowDown: (extend) => stepRow(true, extend),
    Home: (extend) => step(1, extend, -1),
    End: (extend) => step(-1, extend, items.length),
    " ": () => step(1),
    Backspace: back,
    Enter: accept,
    Escape: () => choose(current),
    Delete: () => labelSelected(null),
    u: undo,
    f: () => setFilter(filter === "all" ? "unlabeled" : "all"),
    s: save,
    z: toggleFull,
    "/": () => element("find").focus(),
    "?": () => element("help").showModal(),
  };
  const repeats = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]);

  // Whether a key is for something else: the field or button with the focus, or a dialog without the current image.
  function isTaken(key, target) {
    if (target.closest?.("input, select")) return true;
    if ((key === "Enter" || key === " ") && target.closest?.("button, a, summary")) return true;
    const full = element("full").open;
    return element("help").open || (full && key === "Escape") || (full && example !== null && key !== "z");
  }

  document.addEventListener("keydown", (event) => {
    const undoes = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
    if (!undoes && (event.ctrlKey || event.metaKey || event.altKey)) return;
    const key = undoes ? "u" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (isTaken(key, event.target)) return;
    const act = labelOfKey.has(key) ? () => labelSelected(labelOfKey.get(key)) : actions[key];
    if (!act) return;
    event.preventDefault();
    if (event.repeat && !repeats.has(key)) return; // a key held down is not a label for the next images
    act(event.shiftKey);
  });
  element("find").addEventListener("input", () => find(current === null ? 0 : current));
  element("find").addEventListener("keydown", (event) => {
    if (event.key === "Enter") find(current === null ? 0 : current + 1);
    if (event.key === "Escape") choose(current);
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector("button").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", focusCurrent);
  }
  document.addEventListener("click", (event) => {
    // After a click, not after a press by key, Enter and Space are for the images again.
    if (event.detail && event.target.closest("header button, summary") && !element("help").open) focusCurrent();
  });
  element("filter").addEventListener("change", () => setFilter(element("filter").value));
  element("enlarge").addEventListener("click", toggleFull);
  element("full-image").addEventListener("click", toggleFull);
  element("undo").addEventListener("click", undo);
  element("save").addEventListener("click", save);
  element("keys").addEventListener("click", actions["?"]);
  // What is scrolled to stays clear of the header, and on a narrow screen of the panel below.
  const bars = { "--header": document.querySelector("header"), "--panel-height": document.querySelector("aside") };
  const measure = new ResizeObserver(() => {
    for (const name in bars) document.documentElement.style.setProperty(name, `${bars[name].offsetHeight}px`);
  });
  Object.values(bars).forEach((bar) => measure.observe(bar));
  window.addEventListener("storage", (event) => {
    // Another tab shows this page, too, and has newer labels.
    if (event.key !== query.key || event.newValue === null) return;
    const before = current;
    restore(event.newValue);
    current = before;
    show();
  });
  window.addEventListener("beforeunload", (event) => {
    if (!storageWorks && unsaved) event.preventDefault();
  });

  build();
  try {
    const kept = localStorage.getItem(query.key);
    if (kept !== null) restore(kept);
  } catch (error) {
    storageWorks = false;
  }
  if (items.length && isComplete()) say(COMPLETE);
  choose(current);
  trail = [];
})();
