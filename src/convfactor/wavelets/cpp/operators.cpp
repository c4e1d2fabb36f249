// The operators that torch sees.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "merge.h"
#include "split.h"

namespace convfactor {

template <typename Run>
void in_accumulator_of(at::ScalarType dtype, const Run& run) {
  if (dtype == at::kDouble) {
    run(double{});
  } else {
    run(float{});
  }
}

at::Tensor rows_in_place(const std::optional<at::Tensor>& given, int64_t dims) {
  if (!given.has_value()) return {};
  bool dense = true;
  int64_t stride = 1;
  for (int64_t dim = 1; dim <= dims; ++dim) {
    dense = dense && given->stride(-dim) == stride;
    stride *= given->size(-dim);
  }
  return dense ? *given : given->contiguous();
}

at::Tensor merge(const std::optional<at::Tensor>& given_low,
                 const std::optional<at::Tensor>& given_bands, at::TensorList taps,
                 at::IntArrayRef starts, int64_t cols, int64_t spacing, bool symmetric,
                 bool transposed, at::ScalarType dtype) {
  const at::Tensor low = rows_in_place(given_low, 1), bands = rows_in_place(given_bands, 2);
  TORCH_CHECK(low.defined() || bands.defined(), "low or bands must be given");
  const Bank bank(taps, starts, cols, spacing, symmetric, transposed);
  const int64_t height = low.defined() ? low.size(1) : 2 * bands.size(2);
  const int64_t width = low.defined() ? low.size(2) : 2 * bands.size(3);
  const at::Tensor& any = low.defined() ? low : bands;
  const at::Tensor image =
      at::empty({any.size(0), height / bank.cols() * bank.rows(),
                 width / bank.cols() * bank.rows()}, any.options().dtype(dtype));
  in_accumulator_of(any.scalar_type(), [&](auto zero) {
    using A = decltype(zero);
    const int64_t together = side_by_side(image.size(0), width);
    const Filters<A> filters(bank, height, width, together);
    const Schedule schedule(filters.columns, std::max<int64_t>(2, bank.rows()));
    in_strips(image.size(0), together, schedule.units(), schedule.unit * image.size(2), [&] {
      return Merge<A>(low, bands, image, bank.diagonal(), filters, schedule);
    });
  });
  return image;
}

std::tuple<at::Tensor, at::Tensor> split(const at::Tensor& given, at::TensorList taps,
                                         at::IntArrayRef starts, int64_t cols, int64_t spacing,
                                         bool symmetric, bool transposed, bool with_low,
                                         bool with_bands, at::ScalarType dtype) {
  const at::Tensor image = rows_in_place(given, 1);
  const Bank bank(taps, starts, cols, spacing, symmetric, transposed);
  const int64_t count = image.size(0), height = image.size(1) / bank.cols() * bank.rows();
  const int64_t width = image.size(2) / bank.cols() * bank.rows();
  const auto options = image.options().dtype(dtype);
  at::Tensor low, bands;
  if (with_low) low = at::empty({count, height, width}, options);
  if (with_bands) bands = at::empty({count, 6, height / 2, width / 2, 2}, options);
  in_accumulator_of(image.scalar_type(), [&](auto zero) {
    using A = decltype(zero);
    const int64_t together = side_by_side(count, image.size(2));
    const Filters<A> filters(bank, image.size(1), image.size(2), together);
    const Schedule schedule(filters.columns, 2);
    in_strips(count, together, schedule.units(), schedule.unit * image.size(2), [&] {
      return Split<A>(image, low, bands, bank.diagonal(), filters, schedule);
    });
  });
  if (!with_low) low = at::empty({0}, options);
  if (!with_bands) bands = at::empty({0}, options);
  return {low, bands};
}

}  // namespace convfactor

TORCH_LIBRARY(convfactor, library) {
  library.def(
      "merge(Tensor? low, Tensor? bands, Tensor[] taps, int[] starts, int cols, int spacing, "
      "bool symmetric, bool transposed, ScalarType dtype) -> Tensor");
  library.def(
      "split(Tensor image, Tensor[] taps, int[] starts, int cols, int spacing, bool symmetric, "
      "bool transposed, bool with_low, bool with_bands, ScalarType dtype) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(convfactor, CPU, library) {
  library.impl("merge", &convfactor::merge);
  library.impl("split", &convfactor::split);
}
