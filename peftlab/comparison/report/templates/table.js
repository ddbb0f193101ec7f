"use strict";
(function () {
  var table = document.getElementById("variants");
  if (!table) return;
  var bodies = Array.prototype.slice.call(table.tBodies);
  var words = document.getElementById("words");
  var budget = document.getElementById("budget");
  var order = document.getElementById("order");
  var count = document.getElementById("count");
  var sorted = { key: null, down: false };
  document.getElementById("tools").hidden = false;

  function value(body, key) {
    var cell = body.rows[0].querySelector('[data-key="' + key + '"]');
    return cell ? cell.getAttribute("data-sort") : "";
  }

  function compare(a, b) {
    var x = value(a, sorted.key), y = value(b, sorted.key);
    if (x === "" || y === "") return x === y ? 0 : x === "" ? 1 : -1;
    var both = !isNaN(x) && !isNaN(y);
    var result = both ? Number(x) - Number(y) : x.localeCompare(y);
    return sorted.down ? -result : result;
  }

  function sort(key, down) {
    sorted = { key: key, down: down };
    bodies.map(function (body, place) { return { body: body, place: place }; })
      .sort(function (a, b) { return compare(a.body, b.body) || a.place - b.place; })
      .forEach(function (entry) { table.appendChild(entry.body); });
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head) {
      var own = head.getAttribute("data-key") === key;
      if (own) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    order.value = key + (down ? ":down" : ":up");
  }

  function filter() {
    var wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    var shown = 0;
    bodies.forEach(function (body) {
      var text = body.rows[0].textContent.toLowerCase();
      var fits = wanted.every(function (word) { return text.indexOf(word) >= 0; });
      if (budget && budget.value && body.getAttribute("data-budget") !== budget.value) fits = false;
      body.hidden = !fits;
      shown += fits ? 1 : 0;
    });
    count.textContent = shown + " of " + bodies.length;
  }

  Array.prototype.forEach.call(table.tHead.querySelectorAll("button"), function (button) {
    button.addEventListener("click", function () {
      var key = button.parentNode.getAttribute("data-key");
      sort(key, sorted.key === key && !sorted.down);
    });
  });
  order.addEventListener("change", function () {
    var chosen = order.value.split(":");
    sort(chosen[0], chosen[1] === "down");
  });
  words.addEventListener("input", filter);
  if (budget) budget.addEventListener("change", filter);
  filter();
})();
