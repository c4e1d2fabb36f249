// Sums of weighted rows, and polyphase filters with their borders: all arithmetic of the transform.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace convfactor {

// One length of vector for every machine: compilers split it where registers are shorter.
constexpr int64_t VECTOR_BYTES = 64;

template <typename A>
struct Lanes {
  // Unaligned, and free to look at memory of any type.
  typedef A type __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(A)), may_alias));
  static constexpr int64_t count = VECTOR_BYTES / sizeof(A);
};

// Room behind every row: sums are read and written in whole vectors.
template <typename A>
constexpr int64_t slack = Lanes<A>::count;

// Numbers that begin where vectors do: others lie in two lines of the cache each.
template <typename A>
struct Aligned {
  using value_type = A;
  Aligned() = default;
  template <typename B>
  Aligned(const Aligned<B>&) {}
  A* allocate(size_t count) {
    return static_cast<A*>(::operator new(count * sizeof(A), std::align_val_t(VECTOR_BYTES)));
  }
  void deallocate(A* data, size_t) { ::operator delete(data, std::align_val_t(VECTOR_BYTES)); }
  friend bool operator==(const Aligned&, const Aligned&) { return true; }
  friend bool operator!=(const Aligned&, const Aligned&) { return false; }
};

template <typename A>
using Numbers = std::vector<A, Aligned<A>>;

template <typename A>
struct Term {
  const A* row;
  A weight;
};

// out[i] = sum of weight * row[i], in whole vectors, which may write past the end.
template <typename A>
void combine(const std::vector<Term<A>>& terms, int64_t count, A* out) {
  using V = typename Lanes<A>::type;
  constexpr int64_t step = Lanes<A>::count;
  const Term<A>* begin = terms.data();
  const Term<A>* end = begin + terms.size();
  auto load = [](const A* from) { return *reinterpret_cast<const V*>(from); };
  auto store = [](A* to, V value) { *reinterpret_cast<V*>(to) = value; };
  int64_t i = 0;
  for (; i + 4 * step <= count; i += 4 * step) {
    V a{}, b{}, c{}, d{};
    for (const Term<A>* term = begin; term != end; ++term) {
      const A* row = term->row + i;
      a += term->weight * load(row);
      b += term->weight * load(row + step);
      c += term->weight * load(row + 2 * step);
      d += term->weight * load(row + 3 * step);
    }
    store(out + i, a);
    store(out + i + step, b);
    store(out + i + 2 * step, c);
    store(out + i + 3 * step, d);
  }
  for (; i < count; i += step) {
    V a{};
    for (const Term<A>* term = begin; term != end; ++term) a += term->weight * load(term->row + i);
    store(out + i, a);
  }
}

// As convfactor.wavelets.banded.Taps: output `phases * i + p` reads
// `starts[p] + cols * i + spacing * k`.
struct Taps {
  std::vector<double> weight;
  std::vector<int64_t> starts;
  int64_t length, cols, spacing;
  bool symmetric;

  int64_t phases() const { return static_cast<int64_t>(starts.size()); }

  int64_t reach() const {
    auto ends = std::minmax_element(starts.begin(), starts.end());
    return std::max<int64_t>({-*ends.first, *ends.second + spacing * (length - 1) - cols + 1, 0});
  }

  // Where a sample beyond the ends of `size` is mirrored from.
  static int64_t mirrored(int64_t sample, int64_t size) {
    sample = (sample % (2 * size) + 2 * size) % (2 * size);
    return sample < size ? sample : 2 * size - 1 - sample;
  }

  // The matrix for `size` samples, or its transpose, row after row.
  std::vector<double> matrix(int64_t size, bool transposed) const {
    const int64_t rows = size / cols * phases();
    std::vector<double> made(rows * size);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < length; ++k) {
        const int64_t phase = row % phases();
        int64_t sample = starts[phase] + row / phases() * cols + spacing * k;
        if (symmetric) {
          sample = mirrored(sample, size);
        } else if (sample < 0 || sample >= size) {
          continue;
        }
        made[transposed ? sample * rows + row : row * size + sample] += weight[phase * length + k];
      }
    }
    return made;
  }
};

template <typename A>
struct Tap {
  int64_t offset;
  A weight;
};

// A filter for signals of one size: the rows of its matrix at both ends, and one period of those
// between, in which everything repeats.
template <typename A>
struct Filter {
  using Row = std::vector<Tap<A>>;

  int64_t rows, cols, inputs, outputs, periods;
  int64_t margin;  // periods that one reads on either side of its own, at most
  int64_t head;    // periods at either end that have rows of their own
  std::vector<Row> first, inside, last;

  // `reach` is at least that of the taps: filters that are added need the same.
  Filter(const Taps& taps, int64_t reach, double scale, int64_t size, bool transposed) {
    rows = taps.phases();
    cols = taps.cols;
    if (transposed) {
      std::swap(rows, cols);
      reach = cols * ((reach + rows - 1) / rows);
    }
    inputs = size;
    periods = size / cols;
    outputs = periods * rows;
    margin = std::max<int64_t>(1, (reach + cols - 1) / cols);
    const int64_t least = 2 * margin + 1;
    const bool whole = periods < least;
    head = whole ? periods : margin;
    auto part = [&](int64_t cut, int64_t begin, int64_t count, int64_t shift) {
      const std::vector<double> matrix = taps.matrix(cut * taps.cols, transposed);
      const int64_t width = cut * cols;
      std::vector<Row> made(count * rows);
      for (int64_t r = 0; r < count * rows; ++r) {
        for (int64_t c = 0; c < width; ++c) {
          const double weight = matrix[(begin * rows + r) * width + c];
          if (weight != 0) made[r].push_back({c + shift, static_cast<A>(weight * scale)});
        }
      }
      return made;
    };
    first = part(whole ? periods : least, 0, head, 0);
    inside = part(least, margin, 1, -margin * cols);
    if (!whole) last = part(least, margin + 1, margin, size - least * cols);
  }

  // Calls use(sample, weight) for everything that an output is the sum of.
  template <typename Use>
  void visit(int64_t output, Use use) const {
    const int64_t period = output >> __builtin_ctzll(rows);  // of 1, 2 or 4 rows
    if (period < head) {
      for (const Tap<A>& tap : first[output]) use(tap.offset, tap.weight);
    } else if (period >= periods - head) {
      for (const Tap<A>& tap : last[output - (periods - head) * rows]) use(tap.offset, tap.weight);
    } else {
      const int64_t from = period * cols;
      for (const Tap<A>& tap : inside[output & (rows - 1)]) use(from + tap.offset, tap.weight);
    }
  }

  // First and last sample, that one not included, that outputs of a range read.
  std::pair<int64_t, int64_t> span(int64_t begin, int64_t end) const {
    int64_t low = inputs, high = 0;
    for (int64_t output = begin; output < end; ++output) {
      visit(output, [&](int64_t sample, A) {
        low = std::min(low, sample);
        high = std::max(high, sample + 1);
      });
    }
    return {low, high};
  }
};

}  // namespace convfactor
