// Polyphase filters with their borders, and sums of weighted rows: all arithmetic of the transform.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
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

  // The matrix for `size` samples, or its transpose, row after row.
  std::vector<double> matrix(int64_t size, bool transposed) const {
    const int64_t rows = size / cols * phases();
    std::vector<double> made(rows * size);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < length; ++k) {
        const int64_t phase = row % phases();
        int64_t sample = starts[phase] + row / phases() * cols + spacing * k;
        if (symmetric) {
          sample = ((sample % (2 * size)) + 2 * size) % (2 * size);
          if (sample >= size) sample = 2 * size - 1 - sample;
        } else if (sample < 0 || sample >= size) {
          continue;
        }
        made[transposed ? sample * rows + row : row * size + sample] += weight[phase * length + k];
      }
    }
    return made;
  }
};

struct Tap {
  int64_t offset;
  double weight;
};

// A filter for signals of one size: the rows of its matrix at both ends, and one period of those
// between, in which everything repeats.
struct Filter {
  int64_t rows, cols, inputs, outputs, periods, head;
  std::vector<std::vector<Tap>> first, inside, last;

  Filter() = default;

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
    head = std::max<int64_t>(1, (reach + cols - 1) / cols);
    const bool whole = periods < 2 * head + 1;
    const int64_t cut = whole ? periods : 2 * head + 1;
    if (whole) head = periods;
    const std::vector<double> matrix = taps.matrix(cut * taps.cols, transposed);
    const int64_t width = cut * cols;
    auto row = [&](int64_t index, int64_t shift) {
      std::vector<Tap> found;
      for (int64_t c = 0; c < width; ++c) {
        const double weight = matrix[index * width + c];
        if (weight != 0) found.push_back({c + shift, weight * scale});
      }
      return found;
    };
    for (int64_t r = 0; r < head * rows; ++r) first.push_back(row(r, 0));
    if (whole) return;
    for (int64_t r = 0; r < rows; ++r) inside.push_back(row(head * rows + r, -head * cols));
    for (int64_t r = 0; r < head * rows; ++r) {
      last.push_back(row((head + 1) * rows + r, size - width));
    }
  }

  // Calls use(sample, weight) for everything that an output is the sum of.
  template <typename Use>
  void visit(int64_t output, Use use) const {
    const int64_t period = output >> __builtin_ctzll(rows);  // of 1, 2 or 4 rows
    if (period < head) {
      for (const Tap& tap : first[output]) use(tap.offset, tap.weight);
    } else if (period >= periods - head) {
      for (const Tap& tap : last[output - (periods - head) * rows]) use(tap.offset, tap.weight);
    } else {
      for (const Tap& tap : inside[output & (rows - 1)]) use(period * cols + tap.offset, tap.weight);
    }
  }

  // First and last sample, that one not included, that outputs of a range read.
  std::pair<int64_t, int64_t> span(int64_t begin, int64_t end) const {
    int64_t low = inputs, high = 0;
    for (int64_t output = begin; output < end; ++output) {
      visit(output, [&](int64_t sample, double) {
        low = std::min(low, sample);
        high = std::max(high, sample + 1);
      });
    }
    return {low, high};
  }
};

// A row in streams: sample `count * i + s` is element i of stream s, `stride` after stream s - 1.
// What is written behind a stream is the next one's, which is written later.
struct Streams {
  int64_t count, stride;

  int64_t size() const { return count * stride; }
  // Divisions would take longer than the sums: there are 1, 2 or 4 streams.
  int64_t at(int64_t sample) const {
    return (sample & (count - 1)) * stride + (sample >> __builtin_ctzll(count));
  }
};

// A filter along rows that are kept in streams.
template <typename A>
class RowFilter {
 public:
  RowFilter(const Filter& filter, Streams from) : filter_(filter), from_(from) {
    for (const std::vector<Tap>& phase : filter.inside) {
      inside_.emplace_back();
      for (const Tap& tap : phase) {
        const int64_t at = from_.at(filter.head * filter.cols + tap.offset);
        inside_.back().push_back({at, static_cast<A>(tap.weight)});
      }
    }
    collect(filter.first, begin_);
    collect(filter.last, end_);
  }

  const Filter& filter() const { return filter_; }

  // What output phase `phase` is the sum of, from the first period that is not at the border.
  void inside(const A* row, int64_t phase, std::vector<Term<A>>& terms) const {
    for (const auto& [at, weight] : inside_[phase]) terms.push_back({row + at, weight});
  }

  // Adds the outputs at both ends, in their natural order, to `first` and `last`.
  void border(const A* row, A* first, A* last) const {
    add(begin_, row, first);
    add(end_, row, last);
  }

  int64_t padded() const { return padded_; }

 private:
  struct Column {
    int64_t at;
    std::vector<A> weights;  // one for each output, in whole vectors
  };

  void collect(const std::vector<std::vector<Tap>>& rows, std::vector<Column>& columns) {
    constexpr int64_t step = Lanes<A>::count;
    padded_ = std::max<int64_t>(padded_, (rows.size() + step - 1) / step * step);
    for (size_t r = 0; r < rows.size(); ++r) {
      for (const Tap& tap : rows[r]) {
        const int64_t at = from_.at(tap.offset);
        auto found = std::find_if(
            columns.begin(), columns.end(), [&](const Column& one) { return one.at == at; });
        if (found == columns.end()) {
          columns.push_back({at, std::vector<A>(padded_)});
          found = columns.end() - 1;
        }
        found->weights[r] = static_cast<A>(tap.weight);
      }
    }
  }

  static void add(const std::vector<Column>& columns, const A* row, A* out) {
    using V = typename Lanes<A>::type;
    if (columns.empty()) return;
    const int64_t count = columns.front().weights.size();
    for (int64_t i = 0; i < count; i += Lanes<A>::count) {
      V sum = *reinterpret_cast<V*>(out + i);
      for (const Column& column : columns) {
        sum += row[column.at] * *reinterpret_cast<const V*>(column.weights.data() + i);
      }
      *reinterpret_cast<V*>(out + i) = sum;
    }
  }

  Filter filter_;
  Streams from_;
  std::vector<std::vector<std::pair<int64_t, A>>> inside_;
  std::vector<Column> begin_, end_;
  int64_t padded_ = 0;
};

}  // namespace convfactor
