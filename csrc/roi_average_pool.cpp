// Forward and backward cut the map's rows at the tops and bottoms of the boxes. All rows between two cuts
// lie in the same boxes: forward sums them once, backward computes one row and copies it. Nothing is
// subtracted, so a NaN does not spread to other boxes. Each plane belongs to one thread, so results do not
// depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <vector>

#include "checks.h"
#include "ops.h"
#include "vectors.h"

namespace sp_fast {
namespace {

struct Cells {
    int64_t x0, y0, x1, y1;
    int64_t area() const { return (x1 - x0) * (y1 - y0); }
};

// The rows [y0, y1) between two cuts, the boxes they lie in, and the columns [x0, x1) that these boxes span.
struct Band {
    int64_t y0, y1, x0, x1;
    std::vector<int64_t> boxes;
};

struct ImageBoxes {
    std::vector<Cells> boxes;  // only the first `count`
    std::vector<Band> bands;   // top to bottom, including those without a box
    std::vector<std::vector<int64_t>> bands_of_box;
};

// Clamps a coordinate to a cell; NaN counts as 0.
int64_t clamp_cell(double side, int64_t low, int64_t high) {
    if (std::isnan(side)) side = 0;
    return static_cast<int64_t>(
        std::min(std::max(side, static_cast<double>(low)), static_cast<double>(high)));
}

ImageBoxes cut(const double* boxes, int64_t count, int64_t height, int64_t width) {
    ImageBoxes image;
    std::vector<int64_t> cuts = {0, height};
    for (int64_t l = 0; l < count; ++l) {
        const double* box = boxes + 4 * l;
        Cells cells;
        cells.x0 = clamp_cell(std::floor(box[0]), 0, width - 1);
        cells.y0 = clamp_cell(std::floor(box[1]), 0, height - 1);
        cells.x1 = clamp_cell(std::ceil(box[2]), cells.x0 + 1, width);
        cells.y1 = clamp_cell(std::ceil(box[3]), cells.y0 + 1, height);
        cuts.push_back(cells.y0);
        cuts.push_back(cells.y1);
        image.boxes.push_back(cells);
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    image.bands_of_box.resize(count);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        Band band{cuts[i], cuts[i + 1], width, 0, {}};
        for (int64_t l = 0; l < count; ++l) {
            const Cells& cells = image.boxes[l];
            if (cells.y0 > band.y0 || cells.y1 < band.y1) continue;
            band.boxes.push_back(l);
            band.x0 = std::min(band.x0, cells.x0);
            band.x1 = std::max(band.x1, cells.x1);
            image.bands_of_box[l].push_back(static_cast<int64_t>(image.bands.size()));
        }
        image.bands.push_back(std::move(band));
    }
    return image;
}

std::vector<ImageBoxes> cut_all(const at::Tensor& boxes, const std::optional<at::Tensor>& count,
                                int64_t batch, int64_t height, int64_t width) {
    TORCH_CHECK_VALUE(height >= 1 && width >= 1, "features: expected height and width of at least 1, got ",
                      height, " x ", width);
    check_cpu("boxes", boxes);
    check_shape("boxes", boxes, {batch, -1, 4});
    check_real("boxes", boxes);
    const int64_t number = boxes.size(1);
    const at::Tensor rows = checked_count(count, boxes, batch, number);
    const at::Tensor sides = boxes.to(at::kDouble).contiguous();
    std::vector<ImageBoxes> images;
    for (int64_t b = 0; b < batch; ++b) {
        images.push_back(cut(sides.const_data_ptr<double>() + b * number * 4,
                             rows.const_data_ptr<int64_t>()[b], height, width));
    }
    return images;
}

template <typename T>
SP_FAST_INLINE void average_plane(const T* plane, int64_t width, const ImageBoxes& image, T* band_sums,
                                  T* out, int64_t out_stride) {
    constexpr int64_t kLanes = Lanes<T>::kSize;
    for (size_t i = 0; i < image.bands.size(); ++i) {
        const Band& band = image.bands[i];
        if (band.boxes.empty()) continue;
        T* sums = band_sums + static_cast<int64_t>(i) * width;
        const T* row = plane + band.y0 * width;
        std::copy(row + band.x0, row + band.x1, sums + band.x0);
        for (int64_t y = band.y0 + 1; y < band.y1; ++y) {
            row = plane + y * width;
            for (int64_t x = band.x0; x < band.x1; ++x) sums[x] += row[x];
        }
    }
    for (size_t l = 0; l < image.boxes.size(); ++l) {
        const Cells& cells = image.boxes[l];
        typename Lanes<T>::Vector lanes = {}, part;
        T total = 0;
        for (const int64_t i : image.bands_of_box[l]) {
            const T* sums = band_sums + i * width;
            int64_t x = cells.x0;
            for (; x + kLanes <= cells.x1; x += kLanes) {
                load(part, sums + x);
                lanes += part;
            }
            for (; x < cells.x1; ++x) total += sums[x];
        }
        total += sum_lanes<T>(lanes);
        out[static_cast<int64_t>(l) * out_stride] = total / static_cast<T>(cells.area());
    }
}

template <typename T>
SP_FAST_INLINE void spread_plane(const T* share, int64_t width, const ImageBoxes& image, T* plane) {
    for (const Band& band : image.bands) {
        T* first = plane + band.y0 * width;
        std::fill_n(first, width, T(0));
        for (const int64_t l : band.boxes) {
            const Cells& cells = image.boxes[l];
            for (int64_t x = cells.x0; x < cells.x1; ++x) first[x] += share[l];
        }
        for (int64_t y = band.y0 + 1; y < band.y1; ++y) std::copy_n(first, width, plane + y * width);
    }
}

SP_FAST_CLONES void average(const float* plane, int64_t width, const ImageBoxes& image, float* band_sums,
                            float* out, int64_t out_stride) {
    average_plane(plane, width, image, band_sums, out, out_stride);
}
SP_FAST_CLONES void average(const double* plane, int64_t width, const ImageBoxes& image, double* band_sums,
                            double* out, int64_t out_stride) {
    average_plane(plane, width, image, band_sums, out, out_stride);
}
SP_FAST_CLONES void spread(const float* share, int64_t width, const ImageBoxes& image, float* plane) {
    spread_plane(share, width, image, plane);
}
SP_FAST_CLONES void spread(const double* share, int64_t width, const ImageBoxes& image, double* plane) {
    spread_plane(share, width, image, plane);
}

// The gradient of a large map is newly allocated each time, and page faults would dominate, so ask for huge
// pages. This is only a hint.
void advise_large_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kPage = 1 << 21;
    const uintptr_t address = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

}  // namespace

at::Tensor roi_average_pool(const at::Tensor& features, const at::Tensor& boxes,
                            const std::optional<at::Tensor>& count) {
    check_cpu("features", features);
    check_shape("features", features, {-1, -1, -1, -1});
    check_real("features", features);
    const int64_t batch = features.size(0), channels = features.size(1);
    const int64_t height = features.size(2), width = features.size(3);
    const auto images = cut_all(boxes, count, batch, height, width);
    const int64_t number = boxes.size(1);
    const at::Tensor maps = features.to(accumulate_type(features)).contiguous();
    at::Tensor pooled = at::zeros({batch, number, channels}, maps.options());
    AT_DISPATCH_FLOATING_TYPES(maps.scalar_type(), "roi_average_pool", [&] {
        const scalar_t* maps_data = maps.const_data_ptr<scalar_t>();
        scalar_t* pooled_data = pooled.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
            std::vector<scalar_t> band_sums;
            for (int64_t p = begin; p < end; ++p) {
                const int64_t b = p / channels, c = p % channels;
                band_sums.resize(std::max(band_sums.size(), images[b].bands.size() * width));
                average(maps_data + p * height * width, width, images[b], band_sums.data(),
                        pooled_data + b * number * channels + c, channels);
            }
        });
    });
    return pooled.to(features.scalar_type());
}

at::Tensor roi_average_pool_backward(const at::Tensor& grad, const at::Tensor& boxes,
                                     const std::optional<at::Tensor>& count, int64_t height, int64_t width,
                                     bool channels_last) {
    check_cpu("grad", grad);
    check_shape("grad", grad, {-1, -1, -1});
    check_real("grad", grad);
    const int64_t batch = grad.size(0), number = grad.size(1), channels = grad.size(2);
    const auto images = cut_all(boxes, count, batch, height, width);
    check_shape("boxes", boxes, {batch, number, 4});
    const at::Tensor given = grad.to(accumulate_type(grad)).contiguous();
    at::Tensor features = at::empty({batch, channels, height, width}, given.options());
    advise_large_pages(features.mutable_data_ptr(), features.nbytes());
    AT_DISPATCH_FLOATING_TYPES(given.scalar_type(), "roi_average_pool_backward", [&] {
        const scalar_t* given_data = given.const_data_ptr<scalar_t>();
        scalar_t* features_data = features.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
            std::vector<scalar_t> share(number);
            for (int64_t p = begin; p < end; ++p) {
                const int64_t b = p / channels, c = p % channels;
                const auto& image_boxes = images[b].boxes;
                for (size_t l = 0; l < image_boxes.size(); ++l) {
                    share[l] = given_data[(b * number + static_cast<int64_t>(l)) * channels + c] /
                               static_cast<scalar_t>(image_boxes[l].area());
                }
                spread(share.data(), width, images[b], features_data + p * height * width);
            }
        });
    });
    const auto layout = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    return features.to(grad.scalar_type()).contiguous(layout);
}

}  // namespace sp_fast
